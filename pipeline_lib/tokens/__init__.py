"""Tokenizer training, loading and the fast encode path."""
