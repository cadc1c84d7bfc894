"""The paper's claims, one by one: what it says, what we see, and how sure that is."""
