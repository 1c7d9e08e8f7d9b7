# Installs the versions pinned in requirements.txt. EXTRAS lists extras of pyproject.toml, such as cuda.
FROM python:3.12-slim
ARG EXTRAS=""
WORKDIR /tf_mlm
COPY . .
RUN pip install --no-cache-dir -c requirements.txt ".${EXTRAS:+[$EXTRAS]}"
WORKDIR /runs
ENTRYPOINT ["tf-mlm"]
