# docker build -f launch/docker/cpu.Dockerfile -t emjax:cpu .      docker run emjax:cpu --config configs/kto_biased10.py:micro
FROM python:3.11.9-slim-bookworm
WORKDIR /emjax
COPY requirements/run-py311.txt requirements/
RUN pip install --no-cache-dir --no-deps -r requirements/run-py311.txt
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation . \
    && useradd --create-home --uid 1000 --user-group emjax && install --directory --owner emjax --group emjax runs
# What a run writes lies in runs/ (or another --workdir) and in the user's home; the code is root's.
USER emjax
ENTRYPOINT ["python", "main.py"]
