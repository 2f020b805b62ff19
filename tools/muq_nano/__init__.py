"""Pretraining of muq-nano: composed and real music, spectrograms, masked prediction of tokens.

pretrain_nano   the script
nano            model and losses                nano_run      the run's folder; resuming
nano_music      corpus, tokens and crops        nano_orders   pieces of songs in several orders
composed        synthetic songs                 game_music    downloads music of free games
mel_corpus      spectrograms on disk            mel_tokens    the quantiser: targets of prediction
"""
