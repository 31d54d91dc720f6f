"""Hospitals of invented patients, as hard to learn from as real ones, on demand.

    knobs.py      what can be turned, and the named scenarios
    variables.py  what is measured: public units, ranges, codes
    patients.py   the model of a patient: one structural equation, seeded
    recording.py  what a hospital's files make of it: units, codes, gaps
    tables.py     CSV and Parquet      fhir.py  NDJSON      omop.py  CDM 5.4 in SQLite
    files.py      tables, manifests, a study that runs on them, and the truth

Nobody lived. The generator is NumPy's PCG64: this is data, nowhere near a mask or a noise.
"""
