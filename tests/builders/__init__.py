"""What tests share: one module for each room whose things it makes, and one verb for each thing."""
