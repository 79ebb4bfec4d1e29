"""Kinds of adapter other than plain LoRA whose updates are exact products of thin factors, whatever file holds them."""
