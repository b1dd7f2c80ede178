"""Knowledge distillation: feature taps, losses between student and teacher, the frozen teacher."""
