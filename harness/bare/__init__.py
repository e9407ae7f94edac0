"""The bare tier: an IOMMU and devices without a guest system, driven over QEMU's qtest protocol."""
