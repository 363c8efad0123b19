"""A label-efficiency study: pre-train in several ways, fine-tune with few annotated patients, compare, report.

``settings`` reads what a study is, ``data`` prepares patients and split, ``plan`` lists its cells, ``cells`` does one,
``run`` does all that are missing, ``results`` and ``report`` say what came out.
"""
