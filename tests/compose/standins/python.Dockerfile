# Stands in for python:3.13-slim: Debian's Python 3.13, called as it is there. Of the headers, those of Python alone.
FROM debian:trixie-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates python3-pip python3-venv \
    && cd /tmp && apt-get download libpython3.13-dev \
    && dpkg-deb --fsys-tarfile libpython3.13-dev_*.deb | tar -x -C / ./usr/include \
    && rm -rf /tmp/*.deb /var/lib/apt/lists/* /var/cache/apt/* \
    && ln -s /usr/bin/python3 /usr/local/bin/python && ln -s /usr/bin/python3 /usr/local/bin/python3
# What the machine that builds trusts; the same for pip.
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt
CMD ["python3"]
