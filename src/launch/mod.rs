//! From a refresh to the Job that runs it, and what can be read of that Job.
