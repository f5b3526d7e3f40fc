curl -s $BASE/metrics
