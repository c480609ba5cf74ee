# docker build -f launch/docker/gpu.Dockerfile -t emjax:gpu .      CUDA and cuDNN come as wheels; the host brings the driver.
FROM python:3.11.9-slim-bookworm
WORKDIR /emjax
COPY requirements/run-py311.txt requirements/
RUN pip install --no-cache-dir --no-deps -r requirements/run-py311.txt \
    && pip install --no-cache-dir "jax[cuda12]==0.10.2"
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation . \
    && useradd --create-home --uid 1000 --user-group emjax && install --directory --owner emjax --group emjax runs
# What a run writes lies in runs/ (or another --workdir) and in the user's home; the code is root's.
USER emjax
ENTRYPOINT ["/bin/bash", "-c", ". launch/xla_flags.sh gpu && exec python main.py \"$@\"", "emjax"]
