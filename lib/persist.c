#include "persist.h"

/* Rows that a call may only read are found again here, where they may be written. */
static fgmm_rows *find(const fgmm_context *ctx, const fgmm_rows *rows) {
    fgmm_rows *at = ctx->persisted;
    while (at && at != rows) at = at->next_persisted;
    return at;
}

int fgmm_persists(const fgmm_context *ctx, const fgmm_rows *rows) {
    return find(ctx, rows) != NULL;
}

int fgmm_persisted_any(const fgmm_context *ctx) {
    const fgmm_rows *at = ctx->persisted;
    while (at && !at->feed) at = at->next_persisted;
    return at != NULL;
}

fgmm_feed *fgmm_persisted_take(fgmm_context *ctx, const fgmm_rows *rows) {
    fgmm_rows *own = find(ctx, rows);
    fgmm_feed *feed = own ? own->feed : NULL;
    if (own) own->feed = NULL;
    return feed;
}

int fgmm_persisted_give(fgmm_context *ctx, const fgmm_rows *rows, fgmm_feed *feed) {
    fgmm_rows *own = find(ctx, rows);
    if (!own || own->feed) return 0;
    own->feed = feed;
    return 1;
}

int fgmm_persisted_drop(fgmm_context *ctx, const fgmm_rows *rows) {
    int dropped = 0;
    for (fgmm_rows *at = ctx->persisted; at; at = at->next_persisted) {
        if (!at->feed || (rows && at != rows)) continue;
        fgmm_feed_free(at->feed);
        at->feed = NULL;
        dropped = 1;
    }
    return dropped;
}

int fgmm_persisted_give_way(fgmm_context *ctx, fgmm_status status) {
    if (status != FGMM_ERR_MEMORY || !fgmm_persisted_drop(ctx, NULL)) return 0;
    fgmm_enter(ctx);
    return 1;
}

void fgmm_persisted_forget(fgmm_rows *rows) {
    fgmm_context *ctx = rows->owner;
    if (!rows->persistent) return;
    fgmm_persisted_drop(ctx, rows);
    fgmm_rows **at = &ctx->persisted;
    while (*at != rows) at = &(*at)->next_persisted;
    *at = rows->next_persisted;
    rows->next_persisted = NULL;
    rows->persistent = 0;
}

fgmm_status fgmm_rows_persist(fgmm_context *ctx, fgmm_rows *rows, int persist) {
    if (!ctx) return FGMM_ERR_INVALID;
    fgmm_enter(ctx);
    if (!rows) return fgmm_fail(ctx, FGMM_ERR_INVALID, "rows that persist: rows is NULL");
    if (rows->owner != ctx)
        return fgmm_fail(ctx, FGMM_ERR_INVALID, "rows that persist: they belong to another context");
    if (fgmm_rows_once(rows)) return fgmm_fail(ctx, FGMM_ERR_INVALID, "rows that persist: these can be read only once");
    fgmm_persisted_forget(rows);
    if (!persist) return FGMM_OK;
    rows->persistent = 1;
    rows->next_persisted = ctx->persisted;
    ctx->persisted = rows;
    return FGMM_OK;
}
