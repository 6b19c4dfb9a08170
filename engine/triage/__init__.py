"""Triage: what to do with each mask, what a machine can mend, and whom to ask about the rest."""
