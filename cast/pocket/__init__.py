"""The pocket zoo: a story world, tasks on it, and small models and adapters made from both."""
