# Liveness probe
curl -s $BASE/health/liveliness
