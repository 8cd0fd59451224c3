import socket

from specdecode.lab.subnet import Subnet


def test_two_labs_never_share_a_subnet() -> None:
    first, second = Subnet.claim(), Subnet.claim()
    assert first.number != second.number
    first.close()
    second.close()


def test_free_ports_differ_and_can_be_bound() -> None:
    subnet = Subnet.claim()
    ports = subnet.free_ports(3)
    assert len(set(ports)) == 3
    for port in ports:
        with socket.create_server((subnet.host, port)):
            pass
    subnet.close()


def test_pod_addresses_are_distinct_inside_the_subnet_and_reused_late() -> None:
    subnet = Subnet.claim()
    taken = [subnet.take() for _ in range(600)]
    assert len(set(taken)) == 600
    assert all(address.startswith(f"127.{subnet.number}.") and address != subnet.host for address in taken)
    subnet.give_back(taken[0])
    assert subnet.take() not in taken
    subnet.close()
