/* A bounded queue of pointers for many producers and many consumers, without locks (Vyukov 2010).
 *
 * Each slot carries a sequence number: slot i is free for the push of ticket t when it equals t, and full for the pop
 * of ticket t when it equals t + 1. A ticket is taken by compare-and-swap, so that a thread that is interrupted in
 * between holds up nobody but the reader of its own slot.
 */
#ifndef SONA_RING_H
#define SONA_RING_H

#include <stdint.h>
#include <stdlib.h>

typedef struct {
    uint64_t sequence;
    void *value;
} sona_slot;

typedef struct {
    sona_slot *slots;
    uint64_t mask; /* slots - 1, a power of two minus one */
    uint64_t capacity;
    /* Producers and consumers write different cache lines. */
    uint64_t tail __attribute__((aligned(64)));
    uint64_t dropped;
    uint64_t head __attribute__((aligned(64)));
} sona_ring;

static sona_ring *sona_ring_new(uint64_t capacity) {
    uint64_t slots = 2;
    while (slots < capacity) slots *= 2;
    sona_ring *ring = aligned_alloc(64, sizeof *ring);
    if (!ring) return NULL;
    ring->slots = malloc(slots * sizeof *ring->slots);
    if (!ring->slots) {
        free(ring);
        return NULL;
    }
    for (uint64_t i = 0; i < slots; i++) ring->slots[i].sequence = i;
    ring->mask = slots - 1;
    ring->capacity = capacity;
    ring->head = ring->tail = ring->dropped = 0;
    return ring;
}

static void sona_ring_free(sona_ring *ring) {
    if (ring) free(ring->slots);
    free(ring);
}

static uint64_t sona_ring_size(sona_ring *ring) {
    const uint64_t head = __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE);
    const uint64_t tail = __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE);
    return tail > head ? tail - head : 0;
}

/* How many were taken since the beginning: the tickets given to producers. */
static uint64_t sona_ring_taken(sona_ring *ring) { return __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE); }

/* Counts so many as refused. */
static void sona_ring_refuse(sona_ring *ring, uint64_t count) {
    __atomic_fetch_add(&ring->dropped, count, __ATOMIC_RELAXED);
}

static uint64_t sona_ring_dropped(sona_ring *ring) { return __atomic_load_n(&ring->dropped, __ATOMIC_RELAXED); }

/* 1 if taken, 0 if full. */
static int sona_ring_push(sona_ring *ring, void *value) {
    uint64_t ticket = __atomic_load_n(&ring->tail, __ATOMIC_RELAXED);
    for (;;) {
        sona_slot *slot = &ring->slots[ticket & ring->mask];
        const int64_t lag = (int64_t)(__atomic_load_n(&slot->sequence, __ATOMIC_ACQUIRE) - ticket);
        /* The capacity asked for need not be a power of two, hence the second test. */
        if (lag < 0 || ticket - __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE) >= ring->capacity) {
            const uint64_t now = __atomic_load_n(&ring->tail, __ATOMIC_RELAXED);
            if (now == ticket) return 0;
            ticket = now;
        } else if (lag > 0) {
            ticket = __atomic_load_n(&ring->tail, __ATOMIC_RELAXED);
        } else if (__atomic_compare_exchange_n(&ring->tail, &ticket, ticket + 1, 1, __ATOMIC_RELAXED,
                                               __ATOMIC_RELAXED)) {
            slot->value = value;
            __atomic_store_n(&slot->sequence, ticket + 1, __ATOMIC_RELEASE);
            return 1;
        }
    }
}

/* The oldest value, or NULL if there is none. */
static void *sona_ring_pop(sona_ring *ring) {
    uint64_t ticket = __atomic_load_n(&ring->head, __ATOMIC_RELAXED);
    for (;;) {
        sona_slot *slot = &ring->slots[ticket & ring->mask];
        const int64_t lag = (int64_t)(__atomic_load_n(&slot->sequence, __ATOMIC_ACQUIRE) - (ticket + 1));
        if (lag < 0) return NULL;
        if (lag > 0) {
            ticket = __atomic_load_n(&ring->head, __ATOMIC_RELAXED);
        } else if (__atomic_compare_exchange_n(&ring->head, &ticket, ticket + 1, 1, __ATOMIC_RELAXED,
                                               __ATOMIC_RELAXED)) {
            void *value = slot->value;
            __atomic_store_n(&slot->sequence, ticket + ring->mask + 1, __ATOMIC_RELEASE);
            return value;
        }
    }
}

#endif
