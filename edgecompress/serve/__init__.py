"""Serves a bundle over OpenAI's protocol: FastAPI on uvicorn, one model per process. Needs the extra ``serve``."""
