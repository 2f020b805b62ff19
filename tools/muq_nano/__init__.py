"""How muq-nano was pretrained: composed and real music, its spectrograms, masked prediction."""
