curl $BASE/health
