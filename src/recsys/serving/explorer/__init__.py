"""The page, and the part of the API that only the page needs."""
