"""Loading CLIP, BLIP, BLIP-2 and CoCa: what several stages share and needs torch. No stage, no storage here."""
