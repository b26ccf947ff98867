#include "parallel/schedule_build.h"

#include "kernels/die.h"
#include "parallel/schedule_order.h"
#include "parallel/schedule_transfer.h"
#include "parallel/schedule_weight.h"

static bool better(struct weight_result a, struct weight_result b) {
    return a.length != b.length ? a.length < b.length : a.most_held < b.most_held;
}

void schedule_build(struct schedule *s, const struct schedule_wish *wish) {
    const struct schedule_shape *shape = &wish->shape;
    const char *why = schedule_refuses(shape);
    if (why) bug("schedule: %s", why);
    int group = wish->group > 0 ? wish->group : shape->ranks;
    int orders = schedule_orders(shape, group);
    bool halves = shape->kind == SCHEDULE_ZERO_BUBBLE || shape->kind == SCHEDULE_ZBV;

    struct schedule best = {0};
    struct weight_result least = {0, 0};
    for (int o = 0; o < orders; o++) {
        struct schedule order;
        schedule_init(&order, shape);
        schedule_order(&order, group, o);
        for (int w = 0; w < (halves ? N_WEIGHT_CHOICES : 1); w++) {
            struct schedule one;
            schedule_init(&one, shape);
            struct weight_result result =
                schedule_weight(&one, &order, wish->costs, wish->sizes, w);
            if (!best.rank || better(result, least)) {
                schedule_free(&best);
                best = one;
                least = result;
            } else {
                schedule_free(&one);
            }
        }
        schedule_free(&order);
    }
    schedule_init(s, shape);
    schedule_transfer(s, &best, wish->costs);
    schedule_free(&best);
}
