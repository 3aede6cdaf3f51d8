# The environment of flows and stages. The code comes from git at run time: see docs/how-to/scale-out.md.
FROM python:3.11-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends git \
 && rm -rf /var/lib/apt/lists/*
COPY requirements.lock /
RUN pip install --no-cache-dir "$(grep '^torch==' /requirements.lock)" \
 && pip install --no-cache-dir -r /requirements.lock
WORKDIR /work
