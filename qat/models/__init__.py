"""Networks by name: our small ones, torchvision's ResNets, any of timm."""
