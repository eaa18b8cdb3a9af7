"""A shop with customers and vouchers, and the measured operations of oscar.

`Step` is the part of `OrderCreator.place_order` that handles a voucher, by oscar's own functions: lock it, check that
it is active and available, record its use. `WholeOrder` goes from an empty basket to the order, `LastRequest` is only
its last request, with the voucher in the basket already. Each request is a transaction, as oscar recommends. The rest
of a checkout (HTTP, sessions, pages, addresses, payment, emails) is omitted, to oscar's advantage.
"""

import datetime
from contextlib import contextmanager
from decimal import Decimal

from django.contrib.auth import get_user_model
from django.contrib.sites.models import Site
from django.db import connection, transaction
from django.utils import timezone
from oscar.apps.offer.applicator import Applicator
from oscar.apps.order.utils import OrderCreator
from oscar.apps.partner.strategy import Default
from oscar.apps.shipping.methods import Free
from oscar.core.loading import get_class, get_model
from oscar.test import factories

Basket = get_model("basket", "Basket")
Order = get_model("order", "Order")
OrderDiscount = get_model("order", "OrderDiscount")
ConditionalOffer = get_model("offer", "ConditionalOffer")
Product = get_model("catalogue", "Product")
Voucher = get_model("voucher", "Voucher")
VoucherApplication = get_model("voucher", "VoucherApplication")
OrderTotalCalculator = get_class("checkout.calculators", "OrderTotalCalculator")
SurchargeApplicator = get_class("checkout.applicator", "SurchargeApplicator")
User = get_user_model()

# Many products, so that no order waits for the stock of another.
PRODUCTS = 200
STOCK = 1_000_000


@transaction.atomic
def fill_shop(users):
    """Fill an empty shop."""
    Site.objects.get_or_create(pk=1)
    for _ in range(PRODUCTS):
        factories.ProductFactory(stockrecords__num_in_stock=STOCK, stockrecords__price_currency="EUR")
    User.objects.bulk_create(
        [User(username=f"customer.{n}", email=f"customer.{n}@example.com", password="!") for n in range(1, users + 1)],
        batch_size=1000,
    )


def new_voucher(usage, cap):
    """Create a voucher of 25 % off; `cap` limits its uses, None for no limit."""
    n = Voucher.objects.count() + 1
    everything = factories.RangeFactory(name=f"All {n}", slug=f"all-{n}", includes_all_products=True)
    offer = factories.ConditionalOfferFactory(
        name=f"Summer {n}",
        offer_type=ConditionalOffer.VOUCHER,
        benefit=factories.BenefitFactory(range=everything, value=25),
        condition=factories.ConditionFactory(range=everything, value=1),
        max_basket_applications=1,
        max_global_applications=cap,
    )
    now = timezone.now()
    voucher = factories.VoucherFactory(
        name=f"Summer {n}",
        code=f"SUMMER{n}",
        usage=usage,
        start_datetime=now - datetime.timedelta(hours=1),
        end_datetime=now + datetime.timedelta(days=30),
    )
    voucher.offers.add(offer)
    return voucher


def voucher_counts(voucher):
    """Oscar's own records about a voucher.

    `recorded` are the discounts on orders, `counter` is the value that the cap is compared with.
    """
    offer = voucher.offers.get()
    voucher.refresh_from_db()
    return {
        "recorded": OrderDiscount.objects.filter(offer_id=offer.id, amount__gt=0).count(),
        "counter": offer.num_applications,
        "applications": VoucherApplication.objects.filter(voucher=voucher).count(),
        "num_orders": voucher.num_orders,
    }


class Operation:
    """One of the operations; prepares its baskets and orders without measuring."""

    def __init__(self, voucher, n):
        self.prepared = self.prepare(voucher, list(User.objects.order_by("pk")[:n]))

    def prepare(self, voucher, users):
        raise NotImplementedError

    def open(self, threads):
        """Nothing to do: importing this module has set up Django."""

    @contextmanager
    def client(self):
        connection.ensure_connection()
        try:
            yield self.work
        finally:
            connection.close()

    def close(self):
        """Nothing to do: each client closes its connection."""

    def work(self, item):
        raise NotImplementedError


def _create_baskets(voucher, users):
    """Create a basket with the voucher for each user."""
    baskets = Basket.objects.bulk_create([Basket(owner=user) for user in users], batch_size=1000)
    through = Basket.vouchers.through
    through.objects.bulk_create(
        [through(basket_id=basket.pk, voucher_id=voucher.pk) for basket in baskets], batch_size=1000
    )
    return baskets


class Step(Operation):
    """The voucher's part of an order that exists already."""

    def prepare(self, voucher, users):
        orders = Order.objects.bulk_create(
            [
                Order(
                    number=str(100000 + basket.pk), basket=basket, user=basket.owner, site_id=1, currency="EUR",
                    total_incl_tax=Decimal("7.49"), total_excl_tax=Decimal("7.49"), date_placed=timezone.now(),
                )
                for basket in _create_baskets(voucher, users)
            ],
            batch_size=1000,
        )  # fmt: skip
        return orders

    def work(self, item):
        order = self.prepared[item]
        basket, user = order.basket, order.user
        with transaction.atomic():
            for voucher in basket.vouchers.select_for_update():
                if not voucher.is_active():
                    basket.vouchers.remove(voucher)
                else:
                    available, _ = voucher.is_available_to_user(user=user)
                    if not available:
                        return False
            for voucher in basket.vouchers.all():
                OrderCreator().record_voucher_usage(order, voucher, user)
        return True


class WholeOrder(Operation):
    """Three requests: add a product to the basket, add the voucher, place the order."""

    def prepare(self, voucher, users):
        products = [product.pk for product in Product.objects.order_by("pk")]
        return [(user, products[n % len(products)], voucher.code) for n, user in enumerate(users)]

    def work(self, item):
        user, product_id, code = self.prepared[item]
        with transaction.atomic():
            basket = Basket.open.create(owner=user)
            basket.strategy = Default()
            basket.add_product(Product.objects.get(pk=product_id))
        with transaction.atomic():
            basket = _load_basket(basket.pk, user)
            if not _add_voucher(basket, user, code):
                return False
        return _place_order(basket.pk, user)


class LastRequest(Operation):
    """Place an order by customers who have the voucher in the basket already."""

    @transaction.atomic
    def prepare(self, voucher, users):
        prepared = []
        products = list(Product.objects.order_by("pk"))
        for n, user in enumerate(users):
            basket = Basket.open.create(owner=user)
            basket.strategy = Default()
            basket.add_product(products[n % len(products)])
            if not _add_voucher(_load_basket(basket.pk, user), user, voucher.code):
                raise RuntimeError("the voucher gives no discount")
            prepared.append((user, basket.pk))
        return prepared

    def work(self, item):
        user, basket_id = self.prepared[item]
        return _place_order(basket_id, user)


def _load_basket(basket_id, user):
    """Load the basket as oscar's middleware does for each request."""
    basket = Basket.open.get(pk=basket_id, owner=user)
    basket.owner = user
    basket.strategy = Default()
    if not basket.is_empty:
        Applicator().apply(basket, user)
    return basket


def _add_voucher(basket, user, code):
    """Add a voucher as oscar's view does; return True if it gives a discount."""
    voucher = Voucher._default_manager.get(code=code)
    if basket.contains_voucher(code) or voucher.is_expired() or not voucher.is_active():
        return False
    if not voucher.is_available_to_user(user)[0]:
        return False
    basket.vouchers.add(voucher)
    Applicator().apply(basket, user)
    return _has_discount(basket, voucher.pk)


def _has_discount(basket, voucher_id):
    return any(
        application["voucher"] and application["voucher"].pk == voucher_id for application in basket.offer_applications
    )


def _place_order(basket_id, user):
    """Place the order as oscar's checkout does.

    Loads the basket with its current offers, freezes it and places the order.

    Return True if the order got the discount. Without a discount the order is still placed, as oscar does.
    """
    try:
        with transaction.atomic():
            basket = _load_basket(basket_id, user)
            discounted = bool(basket.offer_applications.offers)
            shipping = Free()
            charge = shipping.calculate(basket)
            surcharges = SurchargeApplicator().get_applicable_surcharges(basket)
            total = OrderTotalCalculator().calculate(basket, charge, surcharges)
            basket.freeze()
            OrderCreator().place_order(
                user=user, basket=basket, shipping_method=shipping, shipping_charge=charge, total=total,
                surcharges=surcharges,
            )  # fmt: skip
            basket.submit()
            return discounted
    except ValueError:
        # Oscar raises this for a voucher that another customer has used up in between.
        return False


IMPLEMENTATIONS = {"step": Step, "order": WholeOrder, "last": LastRequest}
