"""Images without labels, from a task, folders, torchvision or photographs."""
