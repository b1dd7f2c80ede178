"""Unlabelled images, from a task, folders, torchvision or photographs."""
