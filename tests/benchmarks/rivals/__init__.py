"""Other ways to caption a folder of photos with the same checkpoint, each as a competent user would write it."""
