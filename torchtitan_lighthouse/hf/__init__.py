"""Hugging Face's Llama folders: what their files say, read without torch."""
