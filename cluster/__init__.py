"""Where jobs run: connecting, submitting and watching. Nothing yet: jobs run where they are started."""
