"""Questions to a Recording, one per file: `verb_noun(recording, ...) -> NounResult`. Nothing here knows an agent."""
