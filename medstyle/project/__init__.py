"""Look at a user's data, propose a job, and write a project; the state of project and machine."""
