// SPDX-License-Identifier: GPL-2.0
/*
 * Calls the kernel's dma_iova_*() on QEMU's edu with arguments from user space, also wrong ones: what no driver does.
 *
 * A call's arguments go to the kernel as they are, and its answer goes back as it is. What the module keeps for itself
 * is which user memory it pinned for which IOVAs: pages stay pinned for as long as one of these leads anywhere, so that
 * a mapping that a wrong call left behind never reaches memory of somebody else. When the file is closed or the driver
 * is unbound, such mappings are removed, and IOVAs that are still taken are given back.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cleanup.h>
#include <linux/dma-mapping.h>
#include <linux/fs.h>
#include <linux/iommu.h>
#include <linux/iommu-dma.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/overflow.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "dma_iova_test.h"

#define EDU_VENDOR 0x1234
#define EDU_DEVICE 0x11e8
/* More pages than one link of any test has; bounds the memory that a call takes. */
#define MOST_PAGES (1UL << 18)

/* Pinned user memory, and the IOVAs that lead to it. */
struct piece {
	struct list_head node;
	/* First and last byte of the granules, as an IOMMU may have IOVAs up to the last of 64 bits. */
	dma_addr_t first;
	dma_addr_t last;
	/* Of MAP_SINGLE: what undoes it. */
	bool single;
	dma_addr_t addr;
	size_t size;
	enum dma_data_direction dir;
	unsigned long attrs;
	unsigned long count;
	struct page *pages[] __counted_by(count);
};

/* A range that try_alloc overwrote the state of; nobody else knows of it any more. */
struct lost {
	struct list_head node;
	struct dma_iova_state state;
};

struct edu {
	struct kref refs;
	struct mutex lock; /* all below */
	struct pci_dev *pdev; /* NULL once unbound */
	bool open;
	struct list_head pieces;
	struct list_head lost;
	unsigned int pinned;
	struct dma_iova_state states[DMA_IOVA_TEST_STATES];
	/* Whose range has ended: the kernel leaves the state as it was, and a second use would damage the allocator. */
	bool ended[DMA_IOVA_TEST_STATES];
	struct miscdevice misc;
	char name[48];
};

static void edu_release(struct kref *refs)
{
	kvfree(container_of(refs, struct edu, refs));
}

/* Whether a state has a range; dma_use_iova() says so of one whose range has ended, too. */
static bool has_range(struct edu *edu, struct dma_iova_state *state)
{
	return dma_use_iova(state) && !edu->ended[state - edu->states];
}

/* ---- user memory */

static void unpin(struct edu *edu, struct piece *piece)
{
	edu->pinned -= piece->count;
	unpin_user_pages_dirty_lock(piece->pages, piece->count, piece->dir != DMA_TO_DEVICE);
	kvfree(piece);
}

/* Pin memory that must be physically contiguous. Of no bytes, its first page. */
static struct piece *pin(struct edu *edu, u64 address, u64 size, u32 dir)
{
	unsigned int flags = FOLL_LONGTERM | (dir == DMA_TO_DEVICE ? 0 : FOLL_WRITE);
	unsigned long first = address & PAGE_MASK, count, done = 0;
	struct piece *piece;
	u64 end;

	if (check_add_overflow(address, size ? size : 1, &end))
		return ERR_PTR(-EFAULT);
	count = (PAGE_ALIGN(end) - first) >> PAGE_SHIFT;
	if (!count || count > MOST_PAGES)
		return ERR_PTR(-EFAULT);
	piece = kvzalloc(struct_size(piece, pages, count), GFP_KERNEL);
	if (!piece)
		return ERR_PTR(-ENOMEM);
	piece->count = count;
	piece->dir = dir;
	while (done < count) {
		int got = pin_user_pages_fast(first + (done << PAGE_SHIFT), count - done, flags, piece->pages + done);

		if (got <= 0) {
			unpin_user_pages(piece->pages, done);
			kvfree(piece);
			return ERR_PTR(-EFAULT);
		}
		done += got;
	}
	edu->pinned += count;
	for (done = 1; done < count; done++) {
		if (page_to_pfn(piece->pages[done]) != page_to_pfn(piece->pages[0]) + done) {
			unpin(edu, piece);
			return ERR_PTR(-EXDEV);
		}
	}
	return piece;
}

static phys_addr_t phys_of(struct piece *piece, u64 address)
{
	return page_to_phys(piece->pages[0]) + offset_in_page(address);
}

static dma_addr_t last_of(dma_addr_t addr, size_t size)
{
	return (addr + (size ? size - 1 : 0)) | ~PAGE_MASK;
}

/* Note which IOVAs lead to the piece. */
static void keep(struct edu *edu, struct piece *piece, dma_addr_t addr, size_t size)
{
	piece->first = addr & PAGE_MASK;
	piece->last = last_of(addr, size);
	list_add_tail(&piece->node, &edu->pieces);
}

static bool leads_anywhere(struct edu *edu, struct piece *piece)
{
	struct iommu_domain *domain = iommu_get_domain_for_dev(&edu->pdev->dev);
	unsigned long page;

	/* Without a translation only the caller's word tells that the device is done with the memory. */
	if (!domain || !use_dma_iommu(&edu->pdev->dev))
		return false;
	for (page = 0; page <= (piece->last - piece->first) >> PAGE_SHIFT; page++)
		if (iommu_iova_to_phys(domain, piece->first + (page << PAGE_SHIFT)))
			return true;
	return false;
}

/* Unpin pieces that no IOVA leads to any more. */
static void unpin_all(struct edu *edu, struct list_head *pieces)
{
	struct iommu_domain *domain = iommu_get_domain_for_dev(&edu->pdev->dev);
	struct piece *piece, *next;

	if (list_empty(pieces))
		return;
	/* A lazy domain (DMA-FQ) only queues its invalidations: the device may still use an entry that is gone. */
	if (domain && use_dma_iommu(&edu->pdev->dev))
		iommu_flush_iotlb_all(domain);
	list_for_each_entry_safe(piece, next, pieces, node) {
		list_del(&piece->node);
		unpin(edu, piece);
	}
}

/* Let go of memory between two IOVAs that nothing leads to any more. What MAP_SINGLE made stays until UNMAP_SINGLE. */
static void reap(struct edu *edu, dma_addr_t first, dma_addr_t last)
{
	struct piece *piece, *next;
	LIST_HEAD(done);

	list_for_each_entry_safe(piece, next, &edu->pieces, node)
		if (!piece->single && piece->first <= last && piece->last >= first && !leads_anywhere(edu, piece))
			list_move_tail(&piece->node, &done);
	unpin_all(edu, &done);
}

/* ---- undoing */

/* Of what was bounced, the bounce buffer is lost: only the kernel's own unlink finds it, and that was not called. */
static void unmap_rest(struct edu *edu, struct piece *piece)
{
	struct iommu_domain *domain = iommu_get_domain_for_dev(&edu->pdev->dev);
	unsigned long page, pages = 0;

	if (!domain || !use_dma_iommu(&edu->pdev->dev))
		return;
	for (page = 0; page <= (piece->last - piece->first) >> PAGE_SHIFT; page++) {
		dma_addr_t iova = piece->first + (page << PAGE_SHIFT);

		if (!iommu_iova_to_phys(domain, iova))
			continue;
		pages += iommu_unmap(domain, iova, PAGE_SIZE) >> PAGE_SHIFT;
		/* A format of tables may let go of an entry for several pages only as a whole. */
		if (iommu_iova_to_phys(domain, iova))
			pages += iommu_unmap(domain, iova, piece->last - iova + 1) >> PAGE_SHIFT;
	}
	if (pages)
		pci_info(edu->pdev, "removed %lu pages that were left mapped at %pad\n", pages, &piece->first);
}

static void undo_everything(struct edu *edu)
{
	struct device *dev = &edu->pdev->dev;
	struct piece *piece, *after;
	struct lost *lost, *next;
	LIST_HEAD(done);
	int i;

	pci_clear_master(edu->pdev);
	list_for_each_entry_safe(piece, after, &edu->pieces, node) {
		if (piece->single)
			dma_unmap_phys(dev, piece->addr, piece->size, piece->dir, piece->attrs);
		unmap_rest(edu, piece);
		/* Memory that the device reaches is never given to anybody else, not even after a defect. */
		if (WARN_ON(leads_anywhere(edu, piece)))
			list_del(&piece->node);
		else
			list_move_tail(&piece->node, &done);
	}
	unpin_all(edu, &done);
	for (i = 0; i < DMA_IOVA_TEST_STATES; i++) {
		if (has_range(edu, &edu->states[i]))
			dma_iova_free(dev, &edu->states[i]);
		memset(&edu->states[i], 0, sizeof(edu->states[i]));
		edu->ended[i] = false;
	}
	list_for_each_entry_safe(lost, next, &edu->lost, node) {
		dma_iova_free(dev, &lost->state);
		list_del(&lost->node);
		kfree(lost);
	}
}

/* ---- calls */

static int try_alloc(struct edu *edu, struct dma_iova_test_call *call, struct dma_iova_state *state)
{
	struct lost *lost = NULL;
	struct piece *piece;
	phys_addr_t phys;

	piece = pin(edu, call->address, 1, DMA_TO_DEVICE);
	if (IS_ERR(piece))
		return PTR_ERR(piece);
	phys = phys_of(piece, call->address);
	unpin(edu, piece);
	if (has_range(edu, state)) {
		lost = kzalloc(sizeof(*lost), GFP_KERNEL);
		if (!lost)
			return -ENOMEM;
		lost->state = *state;
		list_add_tail(&lost->node, &edu->lost);
	}
	call->result = dma_iova_try_alloc(&edu->pdev->dev, state, phys, call->size);
	edu->ended[state - edu->states] = false;
	return 0;
}

static int link(struct edu *edu, struct dma_iova_test_call *call, struct dma_iova_state *state)
{
	struct piece *piece = pin(edu, call->address, call->size, call->direction);

	if (IS_ERR(piece))
		return PTR_ERR(piece);
	call->result = dma_iova_link(&edu->pdev->dev, state, phys_of(piece, call->address), call->offset, call->size,
				     call->direction, call->attrs);
	if (call->result) {
		unpin(edu, piece);
		return 0;
	}
	keep(edu, piece, state->addr + call->offset, call->size);
	reap(edu, piece->first, piece->last); /* a link of no bytes maps nothing */
	return 0;
}

static int unlink(struct edu *edu, struct dma_iova_test_call *call, struct dma_iova_state *state)
{
	dma_addr_t addr = state->addr + call->offset;

	dma_iova_unlink(&edu->pdev->dev, state, call->offset, call->size, call->direction, call->attrs);
	reap(edu, addr & PAGE_MASK, last_of(addr, call->size));
	return 0;
}

static int end_range(struct edu *edu, struct dma_iova_test_call *call, struct dma_iova_state *state, bool destroy)
{
	struct dma_iova_state was = *state;

	if (destroy)
		dma_iova_destroy(&edu->pdev->dev, state, call->size, call->direction, call->attrs);
	else
		dma_iova_free(&edu->pdev->dev, state);
	reap(edu, was.addr & PAGE_MASK, last_of(was.addr, dma_iova_size(&was)));
	call->result = dma_use_iova(state);
	edu->ended[state - edu->states] = true;
	return 0;
}

static int map_single(struct edu *edu, struct dma_iova_test_call *call)
{
	struct piece *piece;
	dma_addr_t addr;

	if (call->direction > DMA_FROM_DEVICE)
		return -EDOM;
	piece = pin(edu, call->address, call->size, call->direction);
	if (IS_ERR(piece))
		return PTR_ERR(piece);
	addr = dma_map_phys(&edu->pdev->dev, phys_of(piece, call->address), call->size, call->direction, call->attrs);
	call->result = addr;
	if (dma_mapping_error(&edu->pdev->dev, addr)) {
		unpin(edu, piece);
		return 0;
	}
	piece->single = true;
	piece->addr = addr;
	piece->size = call->size;
	piece->attrs = call->attrs;
	keep(edu, piece, addr, call->size);
	return 0;
}

static int unmap_single(struct edu *edu, struct dma_iova_test_call *call)
{
	struct piece *piece;

	if (call->direction > DMA_FROM_DEVICE)
		return -EDOM;
	list_for_each_entry(piece, &edu->pieces, node) {
		if (!piece->single || piece->addr != call->address)
			continue;
		dma_unmap_phys(&edu->pdev->dev, call->address, call->size, call->direction, call->attrs);
		piece->single = false;
		reap(edu, piece->first, piece->last);
		return 0;
	}
	return -ENOENT;
}

static int call_kernel(struct edu *edu, unsigned int request, struct dma_iova_test_call *call)
{
	struct dma_iova_state *state;

	call->result = 0;
	if (call->state >= DMA_IOVA_TEST_STATES)
		return -EINVAL;
	state = &edu->states[call->state];
	switch (request) {
	case DMA_IOVA_TEST_TRY_ALLOC:
		return try_alloc(edu, call, state);
	case DMA_IOVA_TEST_MAP_SINGLE:
		return map_single(edu, call);
	case DMA_IOVA_TEST_UNMAP_SINGLE:
		return unmap_single(edu, call);
	case DMA_IOVA_TEST_READ_STATE:
		return 0;
	}
	if (!has_range(edu, state))
		return -ESTALE;
	switch (request) {
	case DMA_IOVA_TEST_LINK:
		return link(edu, call, state);
	case DMA_IOVA_TEST_SYNC:
		call->result = dma_iova_sync(&edu->pdev->dev, state, call->offset, call->size);
		return 0;
	case DMA_IOVA_TEST_UNLINK:
		return unlink(edu, call, state);
	case DMA_IOVA_TEST_FREE:
		return end_range(edu, call, state, false);
	case DMA_IOVA_TEST_DESTROY:
		return end_range(edu, call, state, true);
	}
	return -ENOTTY;
}

static void describe(struct edu *edu, struct dma_iova_test_info *info)
{
	struct iommu_domain *domain = iommu_get_domain_for_dev(&edu->pdev->dev);

	info->merge_boundary = dma_get_merge_boundary(&edu->pdev->dev);
	info->dma_mask = dma_get_mask(&edu->pdev->dev);
	info->domain_type = domain ? domain->type : 0;
	info->use_iommu = use_dma_iommu(&edu->pdev->dev);
	info->min_align_mask = dma_get_min_align_mask(&edu->pdev->dev);
	info->untrusted = edu->pdev->untrusted;
	info->pinned = edu->pinned;
}

/* ---- the file */

static int edu_open(struct inode *inode, struct file *file)
{
	struct edu *edu = container_of(file->private_data, struct edu, misc);

	guard(mutex)(&edu->lock);
	if (!edu->pdev)
		return -ENODEV;
	/* One at a time: what a file leaves behind is undone with it, and nobody else may stand in between. */
	if (edu->open)
		return -EBUSY;
	edu->open = true;
	kref_get(&edu->refs);
	file->private_data = edu;
	return nonseekable_open(inode, file);
}

static int edu_close(struct inode *inode, struct file *file)
{
	struct edu *edu = file->private_data;

	scoped_guard(mutex, &edu->lock) {
		if (edu->pdev)
			undo_everything(edu);
		edu->open = false;
	}
	kref_put(&edu->refs, edu_release);
	return 0;
}

static long edu_ioctl(struct file *file, unsigned int request, unsigned long argument)
{
	void __user *user = (void __user *)argument;
	struct edu *edu = file->private_data;
	struct dma_iova_test_info info = {};
	struct dma_iova_test_call call;
	u64 mask;
	u32 flag;
	int error;

	guard(mutex)(&edu->lock);
	if (!edu->pdev)
		return -ENODEV;
	switch (request) {
	case DMA_IOVA_TEST_INFO:
		describe(edu, &info);
		return copy_to_user(user, &info, sizeof(info)) ? -EFAULT : 0;
	case DMA_IOVA_TEST_SET_MASK:
		if (copy_from_user(&mask, user, sizeof(mask)))
			return -EFAULT;
		return dma_set_mask(&edu->pdev->dev, mask);
	case DMA_IOVA_TEST_SET_UNTRUSTED:
		if (copy_from_user(&flag, user, sizeof(flag)))
			return -EFAULT;
		edu->pdev->untrusted = !!flag;
		return 0;
	case DMA_IOVA_TEST_SET_MIN_ALIGN_MASK:
		if (copy_from_user(&flag, user, sizeof(flag)))
			return -EFAULT;
		dma_set_min_align_mask(&edu->pdev->dev, flag);
		return 0;
	}
	if (request != DMA_IOVA_TEST_CALL(_IOC_NR(request)) || _IOC_NR(request) > _IOC_NR(DMA_IOVA_TEST_READ_STATE))
		return -ENOTTY;
	if (copy_from_user(&call, user, sizeof(call)))
		return -EFAULT;
	error = call_kernel(edu, request, &call);
	if (error)
		return error;
	call.state_addr = edu->states[call.state].addr;
	call.state_size = edu->states[call.state].__size;
	return copy_to_user(user, &call, sizeof(call)) ? -EFAULT : 0;
}

static const struct file_operations edu_files = {
	.owner = THIS_MODULE,
	.open = edu_open,
	.release = edu_close,
	.unlocked_ioctl = edu_ioctl,
};

/* ---- the driver */

static int edu_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct edu *edu;
	int error;

	edu = kvzalloc(sizeof(*edu), GFP_KERNEL);
	if (!edu)
		return -ENOMEM;
	kref_init(&edu->refs);
	mutex_init(&edu->lock);
	INIT_LIST_HEAD(&edu->pieces);
	INIT_LIST_HEAD(&edu->lost);
	edu->pdev = pdev;
	error = pci_enable_device_mem(pdev);
	if (error)
		goto release;
	error = dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(64));
	if (error)
		goto disable;
	snprintf(edu->name, sizeof(edu->name), KBUILD_MODNAME "-%s", pci_name(pdev));
	edu->misc.minor = MISC_DYNAMIC_MINOR;
	edu->misc.name = edu->name;
	edu->misc.fops = &edu_files;
	edu->misc.parent = &pdev->dev;
	edu->misc.mode = 0600;
	pci_set_drvdata(pdev, edu);
	error = misc_register(&edu->misc);
	if (error)
		goto disable;
	return 0;

disable:
	pci_disable_device(pdev);
release:
	kref_put(&edu->refs, edu_release);
	return error;
}

static void edu_remove(struct pci_dev *pdev)
{
	struct edu *edu = pci_get_drvdata(pdev);

	misc_deregister(&edu->misc);
	scoped_guard(mutex, &edu->lock) {
		undo_everything(edu);
		pdev->untrusted = 0;
		dma_set_min_align_mask(&pdev->dev, 0);
		edu->pdev = NULL;
	}
	pci_disable_device(pdev);
	kref_put(&edu->refs, edu_release);
}

/* Takes no device by itself, only one that names it as its driver_override: the others are VFIO's. */
static const struct pci_device_id edu_ids[] = {
	{ PCI_DEVICE_DRIVER_OVERRIDE(EDU_VENDOR, EDU_DEVICE, PCI_ID_F_VFIO_DRIVER_OVERRIDE) },
	{}
};

static struct pci_driver edu_driver = {
	.name = KBUILD_MODNAME,
	.id_table = edu_ids,
	.probe = edu_probe,
	.remove = edu_remove,
};
module_pci_driver(edu_driver);

MODULE_DESCRIPTION("The kernel's dma_iova_*() on QEMU's edu, called from user space");
MODULE_LICENSE("GPL");
