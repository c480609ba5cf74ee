# docker build -f launch/docker/tpu.Dockerfile -t emjax:tpu .
FROM python:3.11.9-slim-bookworm
WORKDIR /emjax
COPY requirements/run-py311.txt requirements/
RUN pip install --no-cache-dir --no-deps -r requirements/run-py311.txt \
    && pip install --no-cache-dir libtpu==0.0.42.1 gcsfs==2026.6.0
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation . \
    && useradd --create-home --uid 1000 --user-group emjax && install --directory --owner emjax --group emjax runs
# What a run writes lies in runs/ (or another --workdir) and in the user's home; the code is root's.
USER emjax
# libtpu's flags, then the program in the shell's place, so that SIGTERM reaches it.
ENTRYPOINT ["/bin/bash", "-c", ". launch/xla_flags.sh tpu && exec python main.py \"$@\"", "emjax"]
