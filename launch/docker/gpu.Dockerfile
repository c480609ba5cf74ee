# docker build -f launch/docker/gpu.Dockerfile -t emjax:gpu .      CUDA and cuDNN come as wheels; the host brings the driver.
FROM python:3.11.9-slim-bookworm
WORKDIR /emjax
COPY requirements/run-py311.txt requirements/
RUN pip install --no-cache-dir --no-deps -r requirements/run-py311.txt \
    && pip install --no-cache-dir "jax[cuda12]==0.10.2"
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation . && useradd --create-home emjax
USER emjax
ENTRYPOINT ["/bin/bash", "-c", ". launch/xla_flags.sh gpu && exec python main.py \"$@\"", "emjax"]
