#!/usr/bin/env bash
# Puts a real Kafka (jars of Maven Central) into the cache, for tests and the demo, once a version.
# What cannot be had here is said, and left to the tests to skip or (under CI) to fail.
set -euo pipefail
version=4.1.0
cache=${OPSPLANE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/opsplane}
folder="$cache/kafka-$version"

[ -e "$folder" ] && exit
for program in java mvn; do
    if ! command -v "$program" >/dev/null; then
        echo "no $program here: Kafka is not installed" >&2
        exit
    fi
done
echo "fetching Kafka $version"
mkdir -p "$cache"
build=$(mktemp -d "$cache/kafka.XXXXXX")
trap 'rm -rf "$build"' EXIT
# kafka-tools has the console producer and consumer; of the logging that Kafka asks for only the binding is needed.
cat >"$build/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>dev.opsplane</groupId>
  <artifactId>kafka</artifactId>
  <version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$version</version></dependency>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>$version</version></dependency>
    <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>2.25.1</version></dependency>
  </dependencies>
</project>
POM
mvn --batch-mode --quiet -f "$build/pom.xml" dependency:copy-dependencies -DoutputDirectory="$build/libs" \
    >"$cache/kafka.log" 2>&1 || { cat "$cache/kafka.log" >&2; exit 1; }
rm -rf "$build/pom.xml" "$build/target"
# Another run may have been quicker.
mv -T "$build" "$folder" 2>/dev/null || [ -e "$folder" ]
