# The pinned versions of requirements.txt. EXTRAS is a list of extras of pyproject.toml, such as cuda.
FROM python:3.12-slim
ARG EXTRAS=""
WORKDIR /tf_mlm
COPY . .
RUN pip install --no-cache-dir -c requirements.txt ".${EXTRAS:+[$EXTRAS]}"
WORKDIR /runs
ENTRYPOINT ["tf-mlm"]
