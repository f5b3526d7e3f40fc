# Health check
curl -s $BASE/health
