#!/bin/sh
# Rights on Kafka for Tailrace, the least that each needs. Generated: tailrace topics acls --format kafka
#
#   BOOTSTRAP=broker:9092 COMMAND_CONFIG=admin.properties sh acls.sh
#
# kafka-acls.sh comes with Apache Kafka; elsewhere it may be called kafka-acls (set KAFKA_ACLS).
set -eu
: "${BOOTSTRAP:?set it to a broker, host:port}"

allow() {
  "${KAFKA_ACLS:-kafka-acls.sh}" --bootstrap-server "$BOOTSTRAP" \
    ${COMMAND_CONFIG:+--command-config "$COMMAND_CONFIG"} --add --allow-principal "$@"
}

# catalogue: embeds items
allow User:tailrace-catalogue --resource-pattern-type prefixed --operation Read --group tailrace-catalogue
allow User:tailrace-catalogue --operation Write --topic tailrace.dead-letter.v1
allow User:tailrace-catalogue --resource-pattern-type prefixed --operation Write --topic tailrace.item-vectors.v1
allow User:tailrace-catalogue --operation Read --topic tailrace.items.v1 --topic tailrace.rules.v1
allow User:tailrace-catalogue --operation Read --operation Write --topic tailrace.space-control.v1

# items: keeps the statistics of items
allow User:tailrace-items --operation Read --group tailrace-items --topic tailrace.space-control.v1 \
    --topic tailrace.transitions.v1
allow User:tailrace-items --operation Write --topic tailrace.dead-letter.v1
allow User:tailrace-items --operation Read --operation Write --topic tailrace.item-signals.v1

# ranker: learns the ranking and the factors of items
allow User:tailrace-ranker --operation Read --group tailrace-ranker --topic tailrace.items.v1 \
    --topic tailrace.space-control.v1 --topic tailrace.training-examples.v1
allow User:tailrace-ranker --operation Write --topic tailrace.dead-letter.v1
allow User:tailrace-ranker --operation Read --operation Write --topic tailrace.factor-basis.v1 \
    --topic tailrace.item-factors.v1 --topic tailrace.ranker-weights.v1
allow User:tailrace-ranker --resource-pattern-type prefixed --operation Read --topic tailrace.item-vectors.v1

# interactions: makes the slates
allow User:tailrace-interactions --operation Read --group tailrace-interactions --topic tailrace.interactions.v1 \
    --topic tailrace.item-factors.v1 --topic tailrace.item-signals.v1 --topic tailrace.items.v1 \
    --topic tailrace.ranker-weights.v1 --topic tailrace.rules.v1 --topic tailrace.space-control.v1 \
    --topic tailrace.users.v1
allow User:tailrace-interactions --operation Write --topic tailrace.dead-letter.v1 \
    --topic tailrace.training-examples.v1 --topic tailrace.transitions.v1
allow User:tailrace-interactions --operation Read --operation Write --topic tailrace.factor-basis.v1 \
    --topic tailrace.recommendations.v1 --topic tailrace.spaces.v1
allow User:tailrace-interactions --resource-pattern-type prefixed --operation Read \
    --topic tailrace.item-vectors.v1

# producer: your services that send items, events, profiles and rules
allow User:tailrace-producer --operation Write --topic tailrace.interactions.v1 --topic tailrace.items.v1 \
    --topic tailrace.rules.v1 --topic tailrace.users.v1

# reader: your site, which reads the slates
allow User:tailrace-reader --resource-pattern-type prefixed --operation Read --group tailrace-reader
allow User:tailrace-reader --operation Read --topic tailrace.recommendations.v1

# keda: KEDA, which starts and ends processes as they fall behind
allow User:tailrace-keda --operation Describe --group tailrace-catalogue --group tailrace-interactions \
    --group tailrace-items --topic tailrace.interactions.v1 --topic tailrace.items.v1 \
    --topic tailrace.transitions.v1

# operator: a person with the tailrace command: topics, spaces, dead letters, looking things up
allow User:tailrace-operator --resource-pattern-type prefixed --operation Describe --group tailrace-
allow User:tailrace-operator --resource-pattern-type prefixed --operation Create --operation DescribeConfigs \
    --operation Read --topic tailrace.
allow User:tailrace-operator --operation Write --topic tailrace.dead-letter.v1 --topic tailrace.factor-basis.v1 \
    --topic tailrace.items.v1 --topic tailrace.rules.v1 --topic tailrace.space-control.v1 \
    --topic tailrace.spaces.v1 --topic tailrace.training-examples.v1 --topic tailrace.transitions.v1
allow User:tailrace-operator --operation Alter --operation Write --topic tailrace.interactions.v1 \
    --topic tailrace.users.v1
allow User:tailrace-operator --resource-pattern-type prefixed --operation Delete --topic tailrace.item-vectors.v1.
