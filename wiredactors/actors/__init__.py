"""The trio actors: the manager, models, jobs, and the runtime that starts and stops them."""
