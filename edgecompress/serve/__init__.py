"""A bundle behind OpenAI's protocol: FastAPI on uvicorn, one model a process. Needs the extra ``serve``."""
