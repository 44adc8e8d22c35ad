"""Rows to samples: the registry, and the functions that existing mixtures name.

text_to_image   caption → image                      understanding   image → answers
layout          caption → layout → image             grounding       image → boxes
editing         images and an instruction → image    conversations   what all of them share
"""
