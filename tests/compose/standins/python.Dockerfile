# Stands in for python:3.13-slim: Debian's Python 3.13, called as it is there.
FROM debian:trixie-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates python3-dev python3-pip python3-venv \
    && find /usr/lib -name 'libpython*.a' -delete \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && ln -s /usr/bin/python3 /usr/local/bin/python && ln -s /usr/bin/python3 /usr/local/bin/python3
# What the machine that builds trusts, and where it finds packages; the same for pip.
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_BREAK_SYSTEM_PACKAGES=1
CMD ["python3"]
