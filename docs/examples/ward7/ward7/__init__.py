"""Extensions of fedscan: what a hospital group installs beside it."""
