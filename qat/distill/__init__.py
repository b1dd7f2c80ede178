"""Student and teacher: feature taps, losses between them, the frozen teacher."""
