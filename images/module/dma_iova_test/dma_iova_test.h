/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The ioctls of /dev/dma_iova_test-DOMAIN:BUS:DEVICE.FUNCTION; harness/agent/kernel_abi.py has the same layout.
 *
 * An ioctl that returns 0 has called the kernel's function, and `result` is exactly what that returned. One that fails
 * has called nothing, unless the answer could not be written (EFAULT: the struct is read-only memory):
 *   EXDEV   the memory is not physically contiguous, so that the kernel could not be given it as one piece
 *   EFAULT  the memory cannot be pinned
 *   ESTALE  the state has no range: the kernel would follow it without looking
 *   EDOM    with this direction the kernel would stop at a BUG()
 *   ENOENT  nothing was mapped at this address by MAP_SINGLE
 *   EINVAL  no such state
 *   ENOTTY  no such ioctl
 *   ENOMEM  no memory for the module's own notes
 *   ENODEV  the driver has been unbound
 * INFO and SET_* fail by these numbers and by those of the kernel's functions. Open fails by EBUSY while another file
 * of the device is open, and by ENODEV.
 */
#ifndef DMA_IOVA_TEST_H
#define DMA_IOVA_TEST_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define DMA_IOVA_TEST_STATES 256

/**
 * struct dma_iova_test_call - arguments and answer of one call
 * @state: which of the DMA_IOVA_TEST_STATES states, where the function takes one
 * @direction: enum dma_data_direction, passed on unchecked
 * @address: virtual address of the memory; of UNMAP_SINGLE the IOVA
 * @offset: where in the range
 * @size: bytes; of DESTROY the mapped length
 * @attrs: DMA_ATTR_*, passed on unchecked
 * @result: out: what the kernel's function returned; of FREE and DESTROY, whether the state still looks as if it had a
 *          range when they return, and 0 of other void functions
 * @state_addr: out: the state's addr after the call, of FREE and DESTROY as the kernel left it
 * @state_size: out: the state's __size after the call, likewise
 */
struct dma_iova_test_call {
	__u32 state;
	__u32 direction;
	__u64 address;
	__u64 offset;
	__u64 size;
	__u64 attrs;
	__s64 result;
	__u64 state_addr;
	__u64 state_size;
};

/**
 * struct dma_iova_test_info - the device as the kernel's DMA mapping sees it
 * @merge_boundary: dma_get_merge_boundary()
 * @dma_mask: dma_get_mask()
 * @domain_type: type of the device's IOMMU domain, 0 without one
 * @use_iommu: its DMA addresses are translated by dma-iommu
 * @min_align_mask: dma_get_min_align_mask()
 * @untrusted: struct pci_dev's flag
 * @pinned: pages of user memory that are pinned for the device now
 */
struct dma_iova_test_info {
	__u64 merge_boundary;
	__u64 dma_mask;
	__u32 domain_type;
	__u32 use_iommu;
	__u32 min_align_mask;
	__u32 untrusted;
	__u32 pinned;
	__u32 reserved;
};

#define DMA_IOVA_TEST_CALL(number) _IOWR('u', number, struct dma_iova_test_call)
#define DMA_IOVA_TEST_TRY_ALLOC DMA_IOVA_TEST_CALL(0)
#define DMA_IOVA_TEST_LINK DMA_IOVA_TEST_CALL(1)
#define DMA_IOVA_TEST_SYNC DMA_IOVA_TEST_CALL(2)
#define DMA_IOVA_TEST_UNLINK DMA_IOVA_TEST_CALL(3)
#define DMA_IOVA_TEST_FREE DMA_IOVA_TEST_CALL(4)
#define DMA_IOVA_TEST_DESTROY DMA_IOVA_TEST_CALL(5)
#define DMA_IOVA_TEST_MAP_SINGLE DMA_IOVA_TEST_CALL(6)
#define DMA_IOVA_TEST_UNMAP_SINGLE DMA_IOVA_TEST_CALL(7)
#define DMA_IOVA_TEST_READ_STATE DMA_IOVA_TEST_CALL(8)
#define DMA_IOVA_TEST_INFO _IOR('u', 16, struct dma_iova_test_info)
#define DMA_IOVA_TEST_SET_MASK _IOW('u', 17, __u64)
#define DMA_IOVA_TEST_SET_UNTRUSTED _IOW('u', 18, __u32)
#define DMA_IOVA_TEST_SET_MIN_ALIGN_MASK _IOW('u', 19, __u32)

#endif
