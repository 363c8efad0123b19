"""From this bundle to what others read: DICOM segmentations, the network as TorchScript or ONNX, the bundle as a zip.

Modules load when they are named: writing DICOM needs highdicom, ONNX its own packages, a zip neither.
"""
