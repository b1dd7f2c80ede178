"""Model zoo: our small networks, torchvision's ResNets, any of timm."""
