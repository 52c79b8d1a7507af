"""Scores, forms, budgets, plans and surgery: from Kronecker factors to a smaller model."""
