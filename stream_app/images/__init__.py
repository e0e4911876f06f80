"""Item vectors of text and image: ``fusion`` (the formula, and which weight), ``sources`` (where an item's image is),
``space`` (the name of a fused space), ``pool`` (two encoder pools as one), ``weight`` (learned from what people take).
"""
